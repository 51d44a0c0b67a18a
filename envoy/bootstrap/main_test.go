package bootstrap_test

import (
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

func TestMain(m *testing.M) { partstest.Main(m) }
