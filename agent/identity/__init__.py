"""Who is who: identities from labels, their numbers cluster-wide, and the reserved ones."""
