from hortator.client import AsyncHortatorClient as AsyncHortatorClient
from hortator.client import Budget as Budget
from hortator.client import HortatorClient as HortatorClient
from hortator.client import HortatorError as HortatorError
from hortator.client import TaskConfig as TaskConfig
from hortator.client import TaskError as TaskError

__version__: str
