package authz

import "github.com/keyporter/keyporter/apikey"

// WithKeyFormats returns a copy of the table with the formats of keys from other systems. The error
// joins all problems; each is an [apikey.KeyFormatError].
func (t *RouteTable) WithKeyFormats(formats []apikey.KeyFormat) (*RouteTable, error) {
	if len(formats) == 0 {
		return t, nil
	}
	foreign, err := apikey.NewForeign(formats)
	if err != nil {
		return nil, err
	}
	with := *t
	with.foreign, with.formats = foreign, formats
	return &with, nil
}

// Foreign recognises the keys of other systems that the table accepts; nil: none.
func (t *RouteTable) Foreign() *apikey.Foreign { return t.foreign }

// KeyFormats returns the formats of Foreign. Do not modify the slice.
func (t *RouteTable) KeyFormats() []apikey.KeyFormat { return t.formats }
