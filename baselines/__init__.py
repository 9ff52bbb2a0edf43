"""What the paper compares HIR with."""
