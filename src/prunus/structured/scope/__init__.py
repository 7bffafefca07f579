"""Who competes with whom: one file a scope."""

from prunus.structured.scope.component import WithinComponent
from prunus.structured.scope.everyone import Everyone, Normalize
from prunus.structured.scope.scope import AnyScope, Scope
from prunus.structured.scope.unit import WithinUnit

__all__ = ["AnyScope", "Everyone", "Normalize", "Scope", "WithinComponent", "WithinUnit"]
