"""The `vtoken` command."""
