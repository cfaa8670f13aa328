"""Training: images, with or without captions → a model folder that every other command accepts.

`loop` knows optimisers, averages, checkpoints; a `Task` knows what is trained: `pixel` a network of pixels, `autoencoder`
the way into a latent space, `text` a network that listens to captions. `folder` publishes, `card` tells.
"""
