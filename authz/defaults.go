package authz

// DefaultRules returns the route table that Keyporter ships with, with the users' page where it is by
// default.
func DefaultRules() []Rule { return WithPage(ShippedRules(), DefaultPagePath) }

// ShippedRules returns the rules of the API alone, without those of the users' page.
func ShippedRules() []Rule {
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

		{Path: "/api/*", Kind: KindSession},
	}
}
