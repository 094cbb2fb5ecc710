"""The linear recurrence h_t = J_t h_{t-1} + b_t."""
