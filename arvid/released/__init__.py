"""Importers of released systems that are a configuration of one of arvid's paradigms: FAR and MAR.

NOVA and next-block prediction are paradigms themselves: their importers lie in their folders.
"""
