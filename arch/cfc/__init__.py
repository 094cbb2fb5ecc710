"""CfC, the closed-form continuous-time cell."""
