"""What the cluster is, as plain frozen values. Planes make them, compilers read them, nobody changes them."""
