"""Coordinate descent on the true quadratic: groups one after the other, their grids, their codes, and factors that
several of them share."""
