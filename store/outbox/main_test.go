package outbox_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(partstest.M{M: m}) }
