"""The liquid family: vector fields, solvers, gradients, mixers and their kernels."""
