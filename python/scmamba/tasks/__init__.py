"""What people ask for: AnnData in, the same AnnData plus results out."""

from .embed import embed
from .impute import impute, impute_file

__all__ = ["embed", "impute", "impute_file"]
