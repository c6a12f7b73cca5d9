"""Definitions for `dagster dev -m dualtoken.pipelines.workflow.definitions`.

The recipe is the one that DUALTOKEN_RECIPE names, `scenes` by default.
"""

import os
from functools import partial

from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.workflow.assets import recipe_definitions

_recipe = load_recipe(os.environ.get("DUALTOKEN_RECIPE", "scenes"))
definitions = recipe_definitions(_recipe, partial(open_executor, _recipe.cluster), print)
