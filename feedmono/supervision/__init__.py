"""What the supervisor keeps of exchanges, processes and rings, and the rules it judges them by."""
