"""steersman: steer language models through sparse autoencoders."""
