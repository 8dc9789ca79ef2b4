"""What files of some architectures have that others have not: latent attention (`latent.py`)."""
