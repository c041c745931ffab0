"""Importers of released systems that arvid builds as a configuration of one of its paradigms: FAR and MAR.

NOVA and next-block prediction are paradigms of their own. Their importers are in the folders of these paradigms.
"""
