"""NVFlare: any rule, pipeline and server of bezoar as a ``ModelAggregator``, behind the same gate as in Flower.

Needs ``pip install 'bezoar[nvflare]'``.
"""

try:
    import nvflare as _nvflare  # noqa: F401
except ImportError as _error:
    raise ImportError("bezoar.integrations.nvflare needs NVFlare: pip install 'bezoar[nvflare]'") from _error

from bezoar.integrations.coordinator import Status, Verdict
from bezoar.integrations.nvflare.aggregator import META, RobustAggregator
from bezoar.integrations.nvflare.jobs import forgive_errors, use_installed

__all__ = ["META", "RobustAggregator", "Status", "Verdict", "forgive_errors", "use_installed"]
