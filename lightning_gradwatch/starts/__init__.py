"""How far a recurrent network's gradient reaches before its first step, as it is and with each
published initialisation.
"""

from lightning_gradwatch.starts.compare import compare_starts
from lightning_gradwatch.starts.comparison import Comparison
from lightning_gradwatch.starts.initialise import initialise_
from lightning_gradwatch.starts.known import STARTS
from lightning_gradwatch.starts.row import StartRow

__all__ = ["STARTS", "Comparison", "StartRow", "compare_starts", "initialise_"]
