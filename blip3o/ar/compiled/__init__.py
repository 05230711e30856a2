"""Decoding by a kernel that is compiled on the machine it runs on."""
