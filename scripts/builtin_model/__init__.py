"""How the built-in model is made: artwork, words, autoencoder, text encoder, denoiser, evaluation."""
