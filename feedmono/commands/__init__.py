"""Commands that look at an instance or what it stored; larger ones have their own folders."""
