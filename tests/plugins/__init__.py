"""Attacks of a stranger, one file each, as docs/design.md shows them."""
