"""Options that verbs declare, by what they are about."""
