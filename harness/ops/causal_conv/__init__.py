"""The causal depthwise convolution."""
