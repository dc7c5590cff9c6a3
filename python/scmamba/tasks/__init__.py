"""What people ask for: AnnData in, the same AnnData plus results out."""

from .embed import embed, embed_file
from .impute import impute, impute_file

__all__ = ["embed", "embed_file", "impute", "impute_file"]
