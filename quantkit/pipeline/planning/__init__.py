"""What a run would make, cost and be loaded by, told before any work is done."""
