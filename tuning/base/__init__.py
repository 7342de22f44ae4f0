"""The ground floor: configurations, names, errors, files, locks, and the properties of this machine.

Every command uses it. It imports no other room, and knows no trial, model or picture.
"""
