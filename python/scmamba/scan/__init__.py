"""The selective scan: one operator, many backends."""
