"""Kaldi data directories: read, check, change, and turn into 16 kHz audio."""
