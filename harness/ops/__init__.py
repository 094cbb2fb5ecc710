"""Operations below every architecture, and the registry of the kernels that serve them."""
