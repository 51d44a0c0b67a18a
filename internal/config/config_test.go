package config

import "testing"

// Every setting has help and a valid default. The names in the file and in the environment follow
// from its name.
func TestEverySettingHasHelpAndAValidDefault(t *testing.T) {
	for _, s := range settings {
		if s.Help == "" || s.set == nil {
			t.Errorf("%s has no help or cannot be set", s.Name)
		}
		if s.Default == "" {
			continue
		}
		c := newConfig()
		if err := s.apply(&c, s.Default, "default"); err != nil {
			t.Errorf("the default of %s: %v", s.Name, err)
		}
	}
}
