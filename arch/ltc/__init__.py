"""LTC: the mixer whose state obeys a liquid time-constant ODE."""
