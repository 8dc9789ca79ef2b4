"""The steps of a verification, one file each, what their limits rest on, and where two forward passes part.

They import the facts, metrics and reports of `quantkit.verification`, and what it imports; `proof` puts them in order.
"""
