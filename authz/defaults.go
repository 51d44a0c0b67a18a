package authz

// DefaultRules returns the route table that Keyporter ships with.
func DefaultRules() []Rule {
	return []Rule{
		{Path: "/api/v1/tiktok-shop/credits", Kind: KindAPIKey, Methods: []string{"GET"}, Answer: AnswerCredits},
		{Path: "/api/v1/tiktok-shop/*", Kind: KindAPIKey},

		{Path: "/api/v1/adlibrary", Kind: KindAPIKey},
		{Path: "/api/v1/adlibrary/*", Kind: KindAPIKey},
		{Path: "/api/v1/magic-ai", Kind: KindAPIKey},
		{Path: "/api/v1/magic-ai/*", Kind: KindAPIKey},
		{Path: "/api/v1/store-tracker", Kind: KindAPIKey},
		{Path: "/api/v1/store-tracker/*", Kind: KindAPIKey},
		{Path: "/api/v1/store-explorer", Kind: KindAPIKey},
		{Path: "/api/v1/store-explorer/*", Kind: KindAPIKey},
		{Path: "/api/v1/brands", Kind: KindAPIKey},
		{Path: "/api/v1/brands/*", Kind: KindAPIKey},

		// Older paths of the same resources, which the upstream knows.
		{Path: "/api/adlibrary", Kind: KindAPIKey},
		{Path: "/api/adlibrary/*", Kind: KindAPIKey},
		{Path: "/api/store-tracker", Kind: KindAPIKey},
		{Path: "/api/store-tracker/*", Kind: KindAPIKey},
		{Path: "/api/store-explorer", Kind: KindAPIKey},
		{Path: "/api/store-explorer/*", Kind: KindAPIKey},

		// The localized guide prints markalar for brands; the upstream does not know it.
		{Path: "/api/v1/markalar", Kind: KindAPIKey, Rewrite: "/api/v1/brands"},
		{Path: "/api/v1/markalar/*", Kind: KindAPIKey, Rewrite: "/api/v1/brands"},
		{Path: "/api/markalar", Kind: KindSession, Rewrite: "/api/brands"},
		{Path: "/api/markalar/*", Kind: KindSession, Rewrite: "/api/brands"},

		{Path: "/api/v1", Kind: KindNone},
		{Path: "/api/v1/*", Kind: KindNone},

		{Path: "/api", Kind: KindSession, To: ToPage},
		{Path: "/api/", Kind: KindSession, To: ToPage},
		{Path: "/api/regenerate", Kind: KindSession, To: ToPage},
		{Path: "/api/-/*", Kind: KindSession, To: ToPage},
		{Path: "/api/-/login", Kind: KindPublic, To: ToPage},
		{Path: "/api/-/logout", Kind: KindPublic, To: ToPage},
		{Path: "/api/-/static/*", Kind: KindPublic, To: ToPage},

		{Path: "/api/*", Kind: KindSession},
	}
}
