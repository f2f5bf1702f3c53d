"""Experiments: grids, ablations and baselines for the documented figures. Nothing here is part of the
package."""
