"""``feedmono report``: what an instance did over a time."""
