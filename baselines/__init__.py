"""The baselines: established architectures behind the Mixer contract, each in its own file."""
