"""What is trained: matrices through their own rounding, dense weights beside them, and the steps that both take."""
