"""How much an artifact lost on a text: perplexity, divergence and agreement beside the model that it was made from."""
