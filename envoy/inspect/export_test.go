package inspect

// The package's assumptions about Keyporter, which it does not import.
const (
	OwnTimeout     = ownTimeout
	MaxFlushPeriod = maxFlushPeriod
	MetadataKey    = metadataKey
	RuleExtension  = ruleExtension
)

var IdentityHeaders = identityHeaders

// LeakOf is leakOf.
var LeakOf = leakOf

// Commands finds the commands in a format.
func Commands(format string) [][]string { return commands.FindAllStringSubmatch(format, -1) }
