"""Definitions for `dagster dev -m dualtoken.pipelines.workflow.definitions`.

The recipe is the one that DUALTOKEN_RECIPE names, `scenes` by default. Where DUALTOKEN_NIGHTLY names a
nightly's spec, its nights are served beside the recipe's assets.
"""

import os
from functools import partial

import dagster as dg

from dualtoken.pipelines.config.nightly import load_nightly
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.nightly.wiring import open_session
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.workflow.assets import recipe_definitions
from dualtoken.pipelines.workflow.nightly import nightly_definitions

_recipe = load_recipe(os.environ.get("DUALTOKEN_RECIPE", "scenes"))
definitions = recipe_definitions(_recipe, partial(open_executor, _recipe.cluster), print)
_nightly = os.environ.get("DUALTOKEN_NIGHTLY")
if _nightly:
    definitions = dg.Definitions.merge(definitions, nightly_definitions(load_nightly(_nightly), open_session))
