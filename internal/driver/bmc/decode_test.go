package bmc

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"roseau/internal/base/errs"
)

func TestIPMIOutput(t *testing.T) {
	got := fmt.Sprintf("%+v", parseSensors("Inlet Temp,35,degrees C,ok\nFan1,,,ns\nVcore,1.2,Volts,cr\nPS,disabled,ns\n\nx\n"))
	want := "[{Name:Inlet Temp Value:35 Unit:C Health:OK NoValue:false} {Name:Fan1 Value:0 Unit: Health: NoValue:true} {Name:Vcore Value:1.2 Unit:V Health:Critical NoValue:false} {Name:PS Value:0 Unit: Health: NoValue:true}]"
	if got != want {
		t.Errorf("sensors\n%s\nwant\n%s", got, want)
	}
	lan := parseLAN("IP Address Source       : DHCP Address\nIP Address              : 10.0.0.5\nSubnet Mask             : 255.255.255.0\nDefault Gateway IP      : 0.0.0.0\n")
	if lan != (Network{DHCP: true, Address: "10.0.0.5", Netmask: "255.255.255.0"}) {
		t.Errorf("lan %+v", lan)
	}
	if parsePower("System Power         : on\n") != IsOn || parsePower("System Power : off") != IsOff || parsePower("garbage") != PowerUnknown {
		t.Error("power is read wrongly")
	}
	if resetType(PowerCycle, []string{"On", "PowerCycle"}) != "PowerCycle" || resetType(PowerSoft, []string{"On"}) != "" || resetType(PowerOff, nil) != "ForceOff" {
		t.Error("reset types are picked wrongly")
	}
}

// What a controller prints or answers is outside bytes: no panic, no error
// without a kind.
func FuzzDecode(f *testing.F) {
	f.Add("System Power : on\nIP Address : 10.0.0.1\na,1,Volts,ok\n", 200)
	f.Add(`{"UUID":"x","PowerState":"On","Links":{"Chassis":[{"@odata.id":"/x"}]},"Actions":{"#ComputerSystem.Reset":{"target":"/y"}}}`, 200)
	f.Add(`{"error":{"message":"a","@Message.ExtendedInfo":[{"Message":"b"}]}}`, 500)
	f.Add("::\n,,,\n", 401)
	f.Fuzz(func(t *testing.T, text string, status int) {
		parsePower(text)
		parseLAN(text)
		parseSensors(text)
		if SameUUID(text, text) != (plainUUID(text) != "") {
			t.Fatalf("%q is not like itself", text)
		}
		for _, out := range []any{new(system), new(manager), new(drive), new(ethernet)} {
			if err := decodeAnswer(http.MethodGet, "/x", status, []byte(text), out); err != nil && !errors.Is(err, errs.Unavailable) && !errors.Is(err, errs.Denied) {
				t.Fatalf("no kind: %v", err)
			}
		}
		if c, err := ParseAddress(text); err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatalf("no kind: %v", err)
		} else if err == nil && c.Host == "" {
			t.Fatal("an address without a host")
		}
	})
}
