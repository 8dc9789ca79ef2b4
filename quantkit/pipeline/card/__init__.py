"""The model card, README.md: what was done to a model, what was measured, and how each engine runs it."""
