"""The report as one HTML page, which loads nothing: what `verify` found of one or several artifacts, with pictures."""
