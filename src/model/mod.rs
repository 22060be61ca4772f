//! F2: models as data over one shared decoder, and the weights they are read from.
