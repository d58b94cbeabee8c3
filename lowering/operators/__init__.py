"""The operators of this package, one file or folder each."""
