"""Neural circuit policies: the liquid cells of ncps with sparse wirings."""
