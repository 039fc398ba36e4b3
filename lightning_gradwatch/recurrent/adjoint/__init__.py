"""The backward recurrence of each kind of fused module, in closed form."""

from lightning_gradwatch.recurrent.adjoint.base import Adjoint, Carry, Ends, Weights
from lightning_gradwatch.recurrent.adjoint.of_call import adjoint_of, computed_in, make_adjoint

__all__ = ["Adjoint", "Carry", "Ends", "Weights", "adjoint_of", "computed_in", "make_adjoint"]
