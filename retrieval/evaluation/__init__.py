"""Figures of an embedding against a catalogue."""
